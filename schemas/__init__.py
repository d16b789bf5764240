"""What is said: messages, topics, wire format, ranges, limits and errors.

Pure: no input, no output, no clock.
"""
