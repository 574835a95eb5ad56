"""The process image as a Modbus server, and the commands of its masters.

    unit 1       SunSpec: the reply to a write waits for the outcome, a refusal is exception 4
    unit 2       status, request, answer: the reply does not wait, the outcome comes with SP_Ack
    unit 3 on    pages; a writable point of a device is written there, the reply waits for its read-back

    registers  where everything is, as data         native   values as registers, and the handshake
    export     the same as a document               sunspec  the block as a SunSpec device
    server     writes become commands               shown    reads come out of the mirror
    kept       requests, over a restart

A write over Modbus competes like every other, is refused in LOCAL like every other, and is in the same log:
this room knows who asks and with which right, the controller decides.
"""
