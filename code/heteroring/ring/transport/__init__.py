"""Transports of keys and values between ranks: point-to-point messages and the copy engines."""
