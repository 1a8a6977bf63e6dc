"""The threads and sockets that both services share: listening, polling, working.

`poller` has one thread that watches every connection which waits for input; `workers` has
the threads that serve them; `listening` opens sockets. A lock
here guards memory only. Must not import the services.
"""
