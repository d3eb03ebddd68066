"""A blocking face on paho-mqtt: connect, subscribe, publish, wait for the next message.

Owns the waiting. Never judges what a broker does: that is for the scenarios in run.py. Every wait ends after PATIENCE_S.
"""

import queue
import socket
import ssl
import threading

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from way import dress

# A busy machine may be slow, a broken broker never answers.
PATIENCE_S = 60
# How long a session that expires should be kept: longer than any run.
LONG_S = 3600
PROTOCOLS = {"3.1.1": mqtt.MQTTv311, "5": mqtt.MQTTv5}


class Failed(Exception):
    """What the broker did is not what the scenario expects."""


def check(holds, *words):
    """Fails with `words` unless `holds`."""
    if not holds:
        raise Failed(" ".join(str(word) for word in words))


def equal(got, expected, what):
    check(got == expected, f"{what}: expected {expected!r}, got {got!r}")


def properties(packet, **values):
    """MQTT 5 properties by their names in paho, or None if there are none."""
    if not values:
        return None
    made = Properties(packet)
    for name, value in values.items():
        setattr(made, name, value)
    return made


class Target:
    """Where the broker is, and the names that keep this run apart from others."""

    def __init__(self, wish):
        self.wish, self.host, self.port, self.prefix = wish, wish.host, wish.port, wish.prefix
        self.version, self.is_v5 = wish.version, wish.version == "5"
        self.subscriptions_max = wish.subscriptions_max

    def topic(self, rest):
        return f"{self.prefix}/{rest}"

    def peer(self, name, **options):
        return Peer(self, name, **options).connect()


class Peer:
    """One client. Messages are kept in the order in which they came."""

    def __init__(self, target, name, keep=False, expiry_s=LONG_S, will=None, will_properties=None, keep_alive_s=60,
                 manual_ack=False, **connect_properties):
        """`keep`: go on with the session of this name, and have it kept after the connection."""
        self.target, self.keep, self.keep_alive_s = target, keep, keep_alive_s
        client_id = "" if name is None else f"{target.prefix}/{name}".replace("/", "-")
        clean = {} if target.is_v5 else {"clean_session": not keep or name is None}
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=client_id, manual_ack=manual_ack,
                                  protocol=PROTOCOLS[target.version], reconnect_on_failure=False, **clean)
        dress(self.client, target.wish)
        if keep and target.is_v5:
            connect_properties["SessionExpiryInterval"] = expiry_s
        self.connect_properties = properties(PacketTypes.CONNECT, **connect_properties)
        if will:
            topic, payload, qos = will
            wished = properties(PacketTypes.WILLMESSAGE, **(will_properties or {}))
            self.client.will_set(target.topic(topic), payload, qos, properties=wished)
        self.session_present, self.granted, self.aliases = None, {}, {}
        self.messages, self.answers = queue.Queue(), queue.Queue()
        self.disconnected, self.disconnect_reason = threading.Event(), None
        self.client.on_connect = lambda _c, _u, flags, reason, granted: self.answers.put((flags, reason, granted))
        self.client.on_subscribe = lambda _c, _u, _mid, reasons, _p: self.answers.put([code.value for code in reasons])
        self.client.on_unsubscribe = lambda _c, _u, _mid, reasons, _p: self.answers.put([code.value for code in reasons])
        self.client.on_publish = lambda _c, _u, mid, reason, _p: self.answers.put((mid, reason.value))
        self.client.on_message = self._on_message
        self.client.on_disconnect = self._on_disconnect

    def _on_message(self, _client, _userdata, message):
        # paho hands aliases of the broker on as they are. [MQTT-3.3.2.3.4]
        alias = getattr(message.properties, "TopicAlias", None)
        if alias is not None and message.topic:
            self.aliases[alias] = message.topic
        elif alias is not None:
            message.topic = self.aliases[alias].encode()
        self.messages.put(message)

    def _on_disconnect(self, _client, _userdata, _flags, reason, _properties):
        self.disconnect_reason = reason.value
        self.disconnected.set()

    def _answer(self, what):
        try:
            return self.answers.get(timeout=PATIENCE_S)
        except queue.Empty:
            raise Failed(f"no {what} within {PATIENCE_S} s") from None

    def connect(self):
        more = {"clean_start": not self.keep, "properties": self.connect_properties} if self.target.is_v5 else {}
        self.client.connect(self.target.host, self.target.port, self.keep_alive_s, **more)
        self.client.loop_start()
        flags, reason, granted = self._answer("CONNACK")
        check(reason.value == 0, "CONNACK:", reason)
        self.session_present = flags.session_present
        self.granted = vars(granted) if granted else {}
        return self

    def knock(self):
        """The code of the CONNACK, or None if the connection ends without one."""
        try:
            self.client.connect(self.target.host, self.target.port, self.keep_alive_s)
        except (ssl.SSLError, ConnectionError):
            return None
        self.client.on_disconnect = lambda *_: self.answers.put((None, None, None))
        self.client.loop_start()
        _flags, reason, _granted = self._answer("CONNACK or end of the connection")
        return None if reason is None else reason.value

    def subscribe(self, rest, qos=0, identifier=None, **options):
        """Subscribes to one filter below the prefix; gives the code of the SUBACK."""
        return self.subscribe_raw(self.target.topic(rest), qos, identifier, **options)

    def subscribe_raw(self, filter_, qos=0, identifier=None, **options):
        if self.target.is_v5:
            wished = properties(PacketTypes.SUBSCRIBE, **({"SubscriptionIdentifier": identifier} if identifier else {}))
            self.client.subscribe(filter_, options=SubscribeOptions(qos=qos, **options), properties=wished)
        else:
            self.client.subscribe(filter_, qos)
        return self._answer("SUBACK")[0]

    def unsubscribe(self, rest):
        self.client.unsubscribe(self.target.topic(rest))
        return self._answer("UNSUBACK")

    def publish(self, rest, payload, qos=1, retain=False, raw=False, **values):
        """Publishes and waits for the acknowledgement, which must be one; gives its reason code."""
        reason = self.publish_code(rest if raw else self.target.topic(rest), payload, qos, retain, **values)
        check(reason < 0x80, "publish refused with", hex(reason))
        return reason

    def publish_code(self, topic, payload, qos=1, retain=False, **values):
        """The reason code of the acknowledgement, whatever it is."""
        info = self.client.publish(topic, payload, qos, retain, properties=properties(PacketTypes.PUBLISH, **values))
        mid, reason = self._answer("acknowledgement")
        equal(mid, info.mid, "packet identifier of the acknowledgement")
        return reason

    def publish_all(self, rest, payloads, qos):
        """Publishes all of them before it waits for the acknowledgements."""
        for payload in payloads:
            self.client.publish(self.target.topic(rest), payload, qos)
        for _ in payloads:
            _mid, reason = self._answer("acknowledgement")
            check(reason < 0x80, "publish refused with", hex(reason))

    def next(self):
        try:
            return self.messages.get(timeout=PATIENCE_S)
        except queue.Empty:
            raise Failed(f"no message within {PATIENCE_S} s") from None

    def expect(self, rest, payload, qos=None, retain=None):
        """The next message, which must be this one."""
        message = self.next()
        equal((message.topic, bytes(message.payload)), (self.target.topic(rest), as_bytes(payload)), "message")
        if qos is not None:
            equal(message.qos, qos, f"QoS of {rest}")
        if retain is not None:
            equal(bool(message.retain), retain, f"retain of {rest}")
        return message

    def until(self, rest):
        """The messages before the next one on this topic: nothing else is on its way once it is here."""
        before = []
        while True:
            message = self.next()
            if message.topic == self.target.topic(rest):
                return before
            before.append(message)

    def wait_until_disconnected(self):
        check(self.disconnected.wait(PATIENCE_S), f"still connected after {PATIENCE_S} s")
        self.client.loop_stop()
        return self.disconnect_reason

    def leave(self, reason=None, **values):
        """Says DISCONNECT and waits until the connection is closed."""
        more = {}
        if reason is not None:
            more["reasoncode"] = ReasonCode(PacketTypes.DISCONNECT, identifier=reason)
        if values:
            more["properties"] = properties(PacketTypes.DISCONNECT, **values)
        self.client.disconnect(**more)
        self.wait_until_disconnected()

    def vanish(self):
        """Closes the connection without DISCONNECT, as when the process is killed."""
        self.client.socket().shutdown(socket.SHUT_RDWR)
        self.wait_until_disconnected()


def as_bytes(payload):
    return payload.encode() if isinstance(payload, str) else bytes(payload)
