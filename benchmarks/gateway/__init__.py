"""Field devices to MQTT and OPC UA: `side_by_side` has what is measured, and how."""
