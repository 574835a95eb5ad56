"""A book of alarms to play with: conditions by name, time that passes in steps."""

from controller.alarms import book as books
from controller.alarms import orders
from controller.alarms.model import Book, Happening
from controller.alarms.orders import Order, Verb
from controller.alarms.table import AlarmSettings, Entry, Priority

UTC_0 = 1_790_000_000.0
SHELVE_MAX_S = 600.0


def entry(pattern, **changes):
    known = {
        "priority": Priority.MEDIUM,
        "meaning": "m",
        "by_itself": "b",
        "response": "r",
        "off_delay_s": 0.0,
    }
    return Entry(pattern=pattern, **(known | changes))


class Play:
    """`play.step("a", "b")`: these hold now. Entries are plain, without delays, unless said otherwise."""

    def __init__(self, *own: Entry, shelve_max_s=SHELVE_MAX_S):
        self.settings = AlarmSettings((entry("a"), *own), shelve_max_s)
        self.book = Book()
        self.now_s = 1000.0
        self.told: list[Happening] = []

    @property
    def now_utc_s(self):
        return UTC_0 + self.now_s

    def step(self, *keys, after_s=1.0):
        self.now_s += after_s
        conditions = [(key, f"{key} holds") if isinstance(key, str) else key for key in keys]
        done = books.step(self.settings, self.book, conditions, self.now_s, self.now_utc_s)
        self.book = done.book
        self.told += done.happenings
        return self

    def order(self, verb, key="a", *, by="anna", reason="under repair", for_s=60.0):
        order = Order(verb=Verb(verb), key=key, by=by, reason=reason, for_s=for_s)
        done = orders.carry_out(self.settings, self.book, order, self.now_s, self.now_utc_s)
        self.book = done.book
        self.told += done.happenings
        return done.refused

    def restart(self, *, off_s=0.0):
        """A new process, `off_s` later, on a clock that begins anew."""
        utc_s = self.now_utc_s + off_s
        self.now_s = 5.0
        self.book = books.resumed(self.settings, self.book.records.values(), self.now_s, utc_s)

    def state(self, key="a"):
        return books.shown(self.book.records[key])

    def whats(self, key="a"):
        return [one.what for one in self.told if one.key == key]
