"""The validation system: does a server, ours or another, score correctly?"""
