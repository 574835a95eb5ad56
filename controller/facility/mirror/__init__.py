"""Every point over MQTT: one message per group and update, stored on disk while the broker is away.

    PREFIX/BLOCK/GROUP             values, with age, quality and reason (voice.py); `"stored": true` when late
    PREFIX/BLOCK/catalogue/GROUP   retained: what the group and its points are; empty when it is gone
    PREFIX/BLOCK/mirror            retained: {"online": bool, "stored": messages, "lost": messages}

    voice      what a group says          publisher  the live way, and the way over the disk
    spool      messages that wait, on disk

A message is delivered when the broker has confirmed it: with QoS 1 each, with QoS 0 (live values, a fifth of
the work) by a last one of QoS 1 behind them. Until then it is kept in memory, and goes to the spool when the
session breaks, when the broker is away, or when it does not keep up. What is stored is sent in its order
after the reconnect, at a bounded rate beside the live messages, as it was and marked `stored`. So each
message arrives at least once and may arrive twice; `at` tells them apart. A kill -9 costs what is in memory:
some `STORE_S` while the broker is away, what is unconfirmed while it is there.
"""
