"""A consumer of the gateway's ZeroMQ upstream: keeps each message in a file, then acknowledges it.

Usage: consumer.py MESSAGES ACKNOWLEDGEMENTS FILE, the first two as tcp://host:port.
"""

import struct
import sys

import zmq

context = zmq.Context()
messages = context.socket(zmq.PULL)
messages.connect(sys.argv[1])
acknowledgements = context.socket(zmq.PUSH)
acknowledgements.connect(sys.argv[2])
# What was killed while it wrote has left half a message, which it has not acknowledged: it comes again.
with open(sys.argv[3], "ab", buffering=0) as file:
    while True:
        frames = messages.recv_multipart()
        assert len(frames) == 6, frames
        file.write(b"".join(struct.pack(">I", len(frame)) + frame for frame in frames))
        acknowledgements.send(frames[0])
