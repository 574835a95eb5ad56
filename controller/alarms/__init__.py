"""The alarm system, after ISA-18.2 / IEC 62682: from a condition to an operator who has dealt with it.

    conditions (key, text), four times a second  ->  `book`: states, delays, latches, first-out     pure
    what operators order                         ->  `orders`: acknowledge, reset, shelve ...       pure
    `table`   what every alarm means, how urgent it is, what to do        `points`  alarms of single points
    `memory`  the book on disk, for the next start                        `journal` who did what and when
    `desk`    all of it behind four calls, for the controller             `page`    docs/alarms.md

Alarms tell people. Nothing here changes a limit, and a reset starts nothing: it takes a latched alarm off
the list whose condition is gone.
"""

from controller.alarms.desk import AlarmDesk
from controller.alarms.table import AlarmSettings

__all__ = ["AlarmDesk", "AlarmSettings"]
