"""Device profiles: what a type of device says, where it says it, and in which unit.

A profile is one YAML file. It maps names that this house uses (`power_w`, `coolant_supply_c`) to places on
the wire, and fixes type, order, scale and plausible range of each. Everything odd about a vendor (kilowatts,
swapped words, numbers that start at 1, gaps that must not be read) ends here.

Two rules keep it honest. The unit is the last part of every name, checked against the unit field: nobody
can read kW into a name that ends in `_w`. And each profile carries worked examples, registers to value,
verified when it is loaded: driver and simulator share the profile, so between the two a wrong scale would
cancel out; an example taken from a document or an instrument does not.

A profile loads whole or not at all, and a refusal lists every error of the file, each with its remedy.
`model` has the nouns, `complaints` judges how they fit together, `file` reads, `schema` tells editors.
"""

from protocols.profile.file import BUILTIN, FILE_MAX_BYTES, builtin_profiles, load_profile
from protocols.profile.model import (
    BIT_TABLES,
    READ_MAX_BITS,
    READ_MAX_REGISTERS,
    TEXT_MAX_REGISTERS,
    UNIT_REMEDIES,
    UNITS,
    WRITABLE_TABLES,
    Bit,
    Block,
    Control,
    Example,
    Heartbeat,
    Identity,
    Line,
    Point,
    Profile,
    ProfileError,
    Provenance,
    Reversion,
    Setting,
    Table,
    unit_suffix,
)

__all__ = [
    "BIT_TABLES",
    "BUILTIN",
    "FILE_MAX_BYTES",
    "READ_MAX_BITS",
    "READ_MAX_REGISTERS",
    "TEXT_MAX_REGISTERS",
    "UNITS",
    "UNIT_REMEDIES",
    "WRITABLE_TABLES",
    "Bit",
    "Block",
    "Control",
    "Example",
    "Heartbeat",
    "Identity",
    "Line",
    "Point",
    "Profile",
    "ProfileError",
    "Provenance",
    "Reversion",
    "Setting",
    "Table",
    "builtin_profiles",
    "load_profile",
    "unit_suffix",
]
