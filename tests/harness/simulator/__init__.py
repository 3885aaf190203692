"""Many engines, an unkind network and virtual time, all of it from one seed.

    schedule.py   what happens: sites, conversations and steps, generated from a seed
    network.py    providers that lose, delay, double and cut
    resolver.py   a DNS that is slow, silent or wrong for a while
    site.py       one engine on its own clock, with hosts behind it
    invariants.py what must hold, each under its name
    census.py     what really happened, counted
    wire.py       offsets of the few fields that the watchers read
    ground.py     watches which locators get data: only proved and tested ones
    rates.py      watches how often each context sends which message
    state.py      looks at tags, timers and memory between the steps
    bound.py      how long recovery may take, from the timers
    world.py      plays a schedule and tells what was broken

By hand: ``python -m tests.harness.simulator --seed N``.
"""
