"""librdkafka's mock cluster: a Kafka broker of this process, which keeps nothing over its end.

`mock.py serve` prints where it listens; `mock.py create ADDRESS TOPIC...` makes topics, of four partitions each, on one that serves.
"""

import sys
import time

from confluent_kafka import Producer

PATIENCE_S = 30


def serve():
    producer = Producer({"test.mock.num.brokers": 1, "bootstrap.servers": ""})
    (broker,) = producer.list_topics(timeout=PATIENCE_S).brokers.values()
    print(f"serving {broker.host}:{broker.port}", flush=True)
    while True:
        time.sleep(PATIENCE_S)


def create(address, topics):
    producer = Producer({"bootstrap.servers": address, "allow.auto.create.topics": True})
    for topic in topics:
        for _ in range(PATIENCE_S * 10):
            # Asking for a topic makes it.
            if producer.list_topics(topic, timeout=PATIENCE_S).topics[topic].partitions:
                break
            time.sleep(0.1)
        else:
            sys.exit(f"the topic {topic} is not made")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve"]:
            serve()
        case ["create", address, *topics]:
            create(address, topics)
        case _:
            sys.exit(__doc__)
