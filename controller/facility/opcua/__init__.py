"""The OPC UA server of the facility: the process image to SCADA, and SCADA's orders to the controller.

    PowerBlock
      block, facility        what the law decided, what the operators ask
      feeds, racks, nodes, sources, devices
      alarms                 one object per alarm
      Control                SetPowerLimit, Release, SetMode, Acknowledge ...

    server    all of it together      space     the image as objects and variables
    control   methods as a table      alarms    alarms as conditions and events
    users     who may come in         history   the last hours of the main values

The protocol itself (sessions, subscriptions, security) is protocols/opcua. Here is what stands in the address
space: identifiers are addresses of the image, so they hold over restarts, updates and new devices.
"""
