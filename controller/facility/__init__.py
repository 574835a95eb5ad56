"""The facility server: `powerblock serve`, a process of its own beside the controller.

    serve       start-up and life
    opcua       OPC UA server
    modbus      Modbus server: SunSpec and the native map
    bms         DSX Exchange BMS publisher
    prometheus  metrics
    mirror      every point over MQTT, stored while the broker is away

All of them are fed by a mirror of the controller's process image (controller/image/feed.py) and send what
others want done back over it. A server of thousands of variables would make the controller's beat late; here
it can be slow, hang or die, and the loop does not notice.
"""
