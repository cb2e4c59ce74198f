"""The validation system: does a scorer, ours or another, score right?"""
