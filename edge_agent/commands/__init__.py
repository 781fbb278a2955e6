"""What the command `skerry-agent` does, one module a group of commands.

`edge_agent.__main__` reads the arguments and turns what is raised here into one line and an exit
code.  Each function here returns the exit code of what ended in order.
"""
