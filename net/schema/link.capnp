# Control frames of a link between nodes; docs/formats/link.md says when each is sent.
#
# A field is never taken away and never changes its meaning; what is new gets the next number, so that an older peer skips it.
@0xd3c0a5b1f27e6941;

struct Control {
  union {
    hello @0 :Hello;
    # Why the sender closes the connection, for people.
    goodbye @1 :Text;
    # To be answered by a pong of the same number.
    ping @2 :UInt64;
    pong @3 :UInt64;
    # The answer of this call is not wanted any more.
    cancel @4 :UInt64;
  }
}

struct Hello {
  # Message versions that the sender speaks; the highest common one is used.
  versionMin @0 :UInt16;
  versionMax @1 :UInt16;
  # 16 bytes.
  cluster @2 :Data;
  # The sender's number; 0 for an administrator.
  node @3 :UInt64;
  cores @4 :UInt16;
  lanes @5 :UInt16;
  # What the sender takes from the receiver at once: unanswered calls, and bytes of those.
  callsMax @6 :UInt32;
  bytesMax @7 :UInt64;
}
