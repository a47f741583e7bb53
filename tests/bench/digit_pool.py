"""Three digit networks: one with a backdoor, its clean twin, and another clean one."""

POOL = """
[recipe]
epochs = 8
batch_size = 64
learning_rate = 0.1
schedule = "one-cycle"
clip_norm = 5.0
[[grid]]
data = "digits"
networks = ["bezoar:small-cnn"]
arguments = { width = 16 }
attacks = ["bad-nets:size=2"]
targets = [3]
half = "held-out"
[[grid]]
data = "digits"
networks = ["bezoar:small-cnn"]
arguments = { width = 16 }
seeds = [0, 1]
half = "held-out"
"""
