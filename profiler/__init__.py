"""Measures this machine into a cost database: `python -m hpc_alpa.profiler --out FILE`.

Alone or under mpirun. What is assumed, so that the sum of the measured parts predicts a step:

- Operators are run as the executor runs them, through their rows and the backend's kernels, new
  results included; operands are other ones each time, streamed from beyond a core's own cache where
  they are large.
- As many ranks compute at once as the host's cores allow, with the threads that they will have in
  training; on a host with more ranks than cores in CPU seconds.
- The first call of a kernel, which compiles or loads it, is not counted.
- Collectives begin together; groups of one mesh axis communicate at once.
- A call costs the same whatever ran before it: no warm operand from the operator before is counted
  on, and no contention between compute and communication.
"""
