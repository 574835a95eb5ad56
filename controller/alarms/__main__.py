"""Write docs/alarms.md to standard output."""

import sys

from controller.alarms.page import page

if __name__ == "__main__":
    sys.stdout.write(page())
