"""Publisher on the BMS event bus of DSX Exchange, in the role of the building management system.

    BMS/v1/PUB/Metadata/...   retained; before any value of a new session, and every `repeat_s`
    BMS/v1/PUB/Value/...      on change beyond the deadband, at most every `gap_s`; and every `repeat_s`
    System heartbeat          every 10 s, while the controller is heard: who else would carry out requests?
    BMS/v1/INTEGRATION/...    heard: heartbeats, which are echoed, and requests

    mapping    which point of the image is which point of the bus: what DSX leaves to integrators
    rules      the tables behind it              bus_map    what comes of it, as data
    publisher  the session with the bus          told       one point, as it was told
    requests   what integrations ask, fenced     system     heartbeats and their echoes

An integration is alive while its heartbeat moves; a retained message proves nothing and is not heard. Who
may publish under its name is the broker's business: give it an access list. Messages, topics and the
catalogue of types are protocols/bms.
"""
