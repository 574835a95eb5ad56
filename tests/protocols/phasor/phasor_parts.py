"""Frames of IEEE C37.118.2: the worked example of the standard (annex D), and a maker of others."""

import struct
from binascii import crc_hqx

CONFIG = bytes.fromhex(
    "aa3101c61e36448527f056071098000f4240000153746174696f6e2041202020"
    "202020201e360004000400030001564120202020202020202020202020205642"
    "2020202020202020202020202020564320202020202020202020202020204931"
    "2020202020202020202020202020414e414c4f4731202020202020202020414e"
    "414c4f4732202020202020202020414e414c4f47332020202020202020204252"
    "45414b4552203120535441545553425245414b45522032205354415455534252"
    "45414b4552203320535441545553425245414b45522034205354415455534252"
    "45414b4552203520535441545553425245414b45522036205354415455534252"
    "45414b4552203720535441545553425245414b45522038205354415455534252"
    "45414b4552203920535441545553425245414b45522041205354415455534252"
    "45414b4552204220535441545553425245414b45522043205354415455534252"
    "45414b4552204420535441545553425245414b45522045205354415455534252"
    "45414b4552204620535441545553425245414b4552204720535441545553000d"
    "f847000df847000df8470100b2d00000000101000001020000010000ffff0000"
    "0016001ed5d1"
)
DATA = bytes.fromhex(
    "aa0100341e3644853600000041b10000392b0000e36ace7ce36a31830444000009c4000042c80000447a0000461c40003c12d43f"
)
TURN_ON = bytes.fromhex("aa4100121e36448560300f0bbfd00002ce00")


def sealed(body: bytes) -> bytes:
    """With its length and its check sum put right."""
    body = body[:2] + struct.pack(">H", len(body) + 2) + body[4:]
    return body + struct.pack(">H", crc_hqx(body, 0xFFFF))


def config(*pmus, rate=50, time_base=1_000_000, id_code=7734, version=1):
    """`pmus`: (id code, FORMAT, phasors, analogs, digitals, FNOM) each."""
    body = struct.pack(">HHHIIIH", 0xAA30 | version, 0, id_code, 1000, 0, time_base, len(pmus))
    for code, shape, phasors, analogs, digitals, nominal in pmus:
        body += b"PMU".ljust(16) + struct.pack(">5H", code, shape, phasors, analogs, digitals)
        body += bytes(16 * (phasors + analogs + 16 * digitals) + 4 * (phasors + analogs + digitals))
        body += struct.pack(">HH", nominal, 0)
    return sealed(body + struct.pack(">h", rate))


def data(*blocks, soc=2000, fraction=0, quality=0, id_code=7734, version=1):
    return sealed(
        struct.pack(">HHHII", 0xAA00 | version, 0, id_code, soc, quality << 24 | fraction) + b"".join(blocks)
    )


def mhz(deviation, stat=0):
    """A block without anything but an integer frequency."""
    return struct.pack(">Hhh", stat, deviation, 0)


PLAIN = config((1, 0, 0, 0, 0, 1))
