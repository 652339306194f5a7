"""What is behind ``epochmeter bench``: what this machine can do, and how near a model comes to it.

The command's own process plans (`plan`), has the cases measured (`runner`) and works out what they say (`estimate`); it
never imports torch. Each case is measured in a process of its own (`worker`), which knows the operations (`limits`,
`models`, `loader`, over `nets`).
"""
