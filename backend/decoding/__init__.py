"""Photos become pixels in processes of their own, which may be killed: `pool.py` keeps them,
`process.py` is one of them as the service sees it, `worker.py` is what runs there.
"""
