"""The registry of devices: which there are, what is known of each, which are meant.

compact   the parts of a device's documents that queries ask for
facts     a device's row as a query sees it
matching  queries as conditions of the database
listing   pages of devices
groups    named sets of devices: members by name, or a query
labels    labels of many devices at once, by a query or from a table
history   what became of a device
"""
