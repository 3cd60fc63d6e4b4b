"""Live migration: a machine moves to another process, which may be on another host, while it runs.

    source                                   target
    Preamble                       <->       Preamble
    DESCRIPTION                    ->        compared field by field
                                   <-        READY, or FAILED with the reason
    SECTION of each memory device, PLUGGED ->    plugs what is plugged
                                   <-        READY
    PAGES ... in rounds, as long as the guest writes faster than the downtime limit allows
    guest stopped
    PAGES, SECTION ..., END        ->        loads all of it
                                   <-        LOADED
    RUN                            ->
                                   <-        RUNNING
    the source gives the machine up          the guest runs

The bytes are in wire.py, how they get across in channel.py, transport.py and tls.py; pages.py
and rounds.py read and fill guest memory, source.py and target.py have the conversation, and
migration.py is what others see of it.
"""
