"""The floor of the decide bench.

A threaded paho client that sends each message back, and does nothing else.

QoS 1 is driven as one must: no in-flight limit of paho's own, which would queue in a list that it
scans, but a bound of 64 kept here. Both sides have TCP_NODELAY.
"""

import argparse
import socket
from collections import deque

import paho.mqtt.client as mqtt

_WINDOW = 64


def main() -> None:
    """Echoes from one topic to another until it is killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--qos", type=int, required=True)
    parser.add_argument("--source", required=True)
    parser.add_argument("--target", required=True)
    options = parser.parse_args()
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="echo")
    client.max_inflight_messages_set(65_535)
    waiting: deque[bytes] = deque()
    under_way = 0

    def send(payload: bytes) -> None:
        nonlocal under_way
        under_way += 1
        client.publish(options.target, payload, options.qos)

    def on_connect(*_: object) -> None:
        client.socket().setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.subscribe(options.source, options.qos)

    def on_message(_client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        if options.qos == 0 or under_way < _WINDOW:
            send(message.payload)
        else:
            waiting.append(message.payload)

    def on_publish(*_: object) -> None:
        nonlocal under_way
        if options.qos:
            under_way -= 1
            if waiting:
                send(waiting.popleft())

    client.on_connect = on_connect
    client.on_message = on_message
    client.on_publish = on_publish
    client.connect("127.0.0.1", options.port)
    client.loop_forever()


if __name__ == "__main__":
    main()
