"""The site's wishes: from whoever may ask to what the law hears.

    wire -> source (`openadr`, `dsx`): is it genuine, new, understood?   accepted or refused, with a reason
         -> `policy`:  what was agreed that it means                     setpoints in W
         -> `outlook`: what is near enough to matter
         -> `desk`:    all sources together, on disk before acted upon   `Site` on the board

`heartbeat` tells signs of life from old ones, `history` keeps what came of every signal, `told` answers in
the words of DSX Flex. What the configuration may say about all this is `config`.
"""
