"""Attacks that appear one after another: what each way of going on learns, forgets and costs.

settings   the stream and its arms, as a YAML file holds them
parts      training, dev and test utterances of every attack
anchor     penalties that hold weights near those of the stage before
course     one arm through all stages
summary    the figures of many courses, the trial chosen on dev, paired differences
page       one HTML page
"""
