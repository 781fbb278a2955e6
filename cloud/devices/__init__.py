"""The registry of devices: which there are, what is known of each, which are meant.

facts     a device's row as a query sees it
matching  queries as conditions of the database
listing   pages of devices
groups    named sets of devices: members by name, or a query
"""
