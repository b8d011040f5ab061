"""Options as values, with their defaults: Python's parameters, the command line's flags and a recipe's keys in one."""
