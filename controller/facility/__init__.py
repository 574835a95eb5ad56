"""The facility server: `powerblock serve`, a process of its own beside the controller.

    serve       start-up and life; says what is wrong here among the block's alarms
    config      the `facility` part of `block.yaml`
    opcua/      OPC UA server: address space, orders, alarms, history, users
    modbus/     Modbus server: SunSpec and the native map, and the map as a document
    dsx_bms/    DSX Exchange BMS publisher: the mapping, values, heartbeats, requests
    mirror/     every point over MQTT, stored while the broker is away
    prometheus  metrics
    door        a port to listen on, which may not be to be had

All of them are fed by a mirror of the controller's process image (controller/image/feed.py) and send what
others want done back over it. A server of thousands of variables would make the controller's beat late; here
it can be slow, hang or die, and the loop does not notice. The ways out know nothing of one another.
"""
