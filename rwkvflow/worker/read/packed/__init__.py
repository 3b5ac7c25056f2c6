"""Models that are one map of CBOR or msgpack: web-rwkv's `.prefab`, faster-rwkv's `.fr`."""
