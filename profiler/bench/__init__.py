"""``epochmeter bench``: the limits of this machine, and how near a model comes to them.

The command's own process plans (`plan`), starts the processes that measure (`runner`) and evaluates the times
(`estimate`); it never imports torch. Each case runs in a process of its own (`worker`), which knows the operations
(`limits`, `models`, `loader`, over `nets`).
"""
