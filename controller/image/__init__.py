"""The process image: the newest value of everything that the block knows, for whoever serves it.

model   what a point, a group, a cell, an alarm and a command are
image   groups and their newest cells, on either side of the socket
wire    frames between controller and facility server
server  the controller's end of the socket: tells changes, hears commands
feed    the facility server's end: a mirror that notices silence
block   what the law decided, as points
"""
