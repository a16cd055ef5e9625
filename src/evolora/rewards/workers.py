class WorkerPool:
    pass
