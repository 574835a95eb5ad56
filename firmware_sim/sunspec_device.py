"""A SunSpec device: a chain of models as the Alliance publishes them, encoded by its own library.

The gateway reads the chain with a reader of its own, so a scale factor or an offset that one of the two has
wrong shows as a wrong number. Values are named MODEL.POINT, `701.W`, in SunSpec's units and scaled.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from sunspec2 import device, mb

from firmware_sim.device_fault import DeviceFault
from firmware_sim.modbus_device import Values
from protocols.codec import Value
from protocols.profile import Table

BASE: Final = 40_000
MARK: Final = b"SunS"
END: Final = b"\xff\xff\x00\x00"
HEADER_WORDS: Final = 2  # id and length, not counted in the length

SCALES: Final[Mapping[str, int]] = {  # name of a scale factor -> its power of ten
    "A_SF": -1, "V_SF": -1, "Hz_SF": -2, "W_SF": 0, "PF_SF": -3, "VA_SF": 0, "TotWh_SF": 0,
    "Tmp_SF": -1, "WH_SF": 1, "Pct_SF": -1,
}  # fmt: skip


class SunspecLayout:
    """The registers of these models, from 40000 on. What nobody has a value for is not implemented."""

    def __init__(self, models: Sequence[int], nameplate: Mapping[str, str]) -> None:
        self._models = [device.Model(model) for model in models]
        self._length = len(self._chain()) // 2
        for model in self._models:
            for name, point in model.points.items():
                if name in SCALES and point.pdef["type"] == "sunssf":
                    point.value = SCALES[name]
            model.points["ID"].value = model.model_id
            model.points["L"].value = len(model.get_mb()) // 2 - HEADER_WORDS
        for name, text in nameplate.items():
            self._models[0].points[name].value = text

    def spans(self, table: Table) -> Sequence[tuple[int, int]]:
        return [(BASE, BASE + self._length - 1)] if table == "holding" else []

    def lay(
        self, table: Table, _first: int, registers: list[int], values: Values, fault: DeviceFault | None
    ) -> None:
        if table != "holding":
            return
        for name, value in values.items():
            model_id, _, point = name.partition(".")
            model = next(one for one in self._models if one.model_id == int(model_id))
            if fault is not None and fault.mode == "nan":
                model.points[point].value = None  # "not implemented" is how SunSpec says it
            else:
                model.points[point].cvalue = value
        chain = self._chain()
        registers[:] = [mb.data_to_u16(chain[at : at + 2]) for at in range(0, len(chain), 2)]

    def meant(
        self, _table: Table, _at: int, _words: Sequence[int], _first: int, _registers: list[int]
    ) -> Mapping[str, Value] | None:
        return None  # its models only measure

    def _chain(self) -> bytes:
        return MARK + b"".join(model.get_mb() for model in self._models) + END
