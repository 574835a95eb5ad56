"""What an integrator does with a device before it is trusted: find it, look at it, prove it point by point.

    scan       which units answer                      read, watch   values, each with quality and reason
    probe      what a device is, and what to paste      write         shows the frame; sends it when told so
    points     what a profile knows                     capture       records registers; playback serves them
    checkout   the point-to-point sheet of a block, to be filled in and signed

Everything here reads and nothing else, `write --confirm` apart. There is one connection at a time, every
wait has a bound, and a device of a running block is looked at through the controller's process image, because
its only connection may be the controller's.

A command is a module of its name (`read` and `watch` are `reading`, `write` is `writing`), and `cli` is how
it is typed. Below them: `target`, what was typed; `sources`, ways to the values of a device, and `talk`, the
one that asks Modbus; `shown`, how a value looks to a person; `recording`, `sheet` and `files`, what is left
on disk.
"""
