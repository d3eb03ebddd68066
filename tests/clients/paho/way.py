"""How paho-mqtt gets to the broker: over TCP or TLS, with a password, a certificate or neither.

Owns what is set on a client before it connects. The papers are named on the command line by the test that plays.
"""

import ssl


def add_options(parser):
    parser.add_argument("--way", choices=("tcp", "tls", "mutual-tls"), default="tcp")
    parser.add_argument("--authority", help="the certificate that is trusted")
    parser.add_argument("--certificate", help="the client's own")
    parser.add_argument("--key", help="and its key")
    parser.add_argument("--user")
    parser.add_argument("--password")
    parser.add_argument("--path", help="of a WebSocket: not used here")


def dress(client, wish):
    """Gives the client what the command line names."""
    if wish.authority:
        client.tls_set(ca_certs=wish.authority, certfile=wish.certificate, keyfile=wish.key,
                       cert_reqs=ssl.CERT_REQUIRED)
    if wish.user:
        client.username_pw_set(wish.user, wish.password)
