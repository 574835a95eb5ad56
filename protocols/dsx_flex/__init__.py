"""NVIDIA DSX Flex 1.7.0: the language in which a grid operator steers an AI factory over MQTT 3.1.1.

Four messages, each a CloudEvent in JSON whose `data` is signed (JWS) by its publisher:

    load target set     operator (ISV) -> agent     go there, then; the latest one wins
    power state status  agent -> all                where every feed is, on each transition and on a beat
    power breach alert  agent -> all                measured power is over the target, and what could be shed
    breach enforcement  infrastructure -> all       what became of those hints

`topics` says where a message lives, `envelope` and `signing` open and close it, `load_target`, `power_state`,
`breach` and `enforcement` know what it means. `load_target` also keeps what is wanted of each feed, and
`power_state` and `breach_watch` say when a message is due. Nothing here reads a clock, draws a random number
or opens a socket: moments and fresh ids are arguments. Whatever is wrong with a message is a
`wire.DsxFlexError` with a sentence.

The contract has gaps that callers must know. The signature covers `data` alone: id, source and time are as
trustworthy as the broker's access rules, so hold topic against source (`topics.check_source`), keep a key set
per publisher, and judge age yourself (`envelope.check_age`). No message carries a ramp, a lease or a beat of
the operator: what to do when the operator falls silent is not said here.

Source: github.com/NVIDIA/dsx-exchange, schemas/asyncapi/dsx-flex/dsx-flex.yaml, version 1.7.0.
"""
