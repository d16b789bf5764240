"""The local broker over MQTT 3.1.1 and 5: the only importers of paho."""
