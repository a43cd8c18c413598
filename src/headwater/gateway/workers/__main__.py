"""`python -m headwater.gateway.workers N`: a worker. `headwater serve --workers N` starts it and gives it its plan."""

from headwater.gateway.workers.running import main

main()
