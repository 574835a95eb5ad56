"""What a Modbus device says about itself, as it is shown to people: texts by name."""

from collections.abc import Mapping
from typing import Final

NAMES: Final = {
    0: "vendor", 1: "product_code", 2: "revision", 3: "url", 4: "product", 5: "model", 6: "application",
}  # fmt: skip


def named(told: Mapping[int, str]) -> dict[str, str]:
    """Texts of a device identification by name, without what is empty; private objects by their number."""
    return {NAMES.get(number, f"object_{number}"): text for number, text in sorted(told.items()) if text}
