"""What `hf-libero` looks like from outside, where it is not installed: names, arguments, and the questions it asks.

Instead of physics a task has a counter: an initial state holds after how many actions the task is done, and after how
many calls of `step` the simulator breaks (0: never). Pictures depend on what a reset draws and on where the hand is.
"""
