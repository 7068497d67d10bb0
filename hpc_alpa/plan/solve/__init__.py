"""Abstract solvers: arrays in, a proven choice out. No graph, mesh or cost model is known here.

What is solved     `problem`, memory over time `liveness`, what comes back `solution`, `options`
The solver         `solver`; with a store on disk `stored`
Presolve           `presolve`, `forced`
First road         `prune`: `pairwise`, `stars`, `chains`, `messages` on `passes`; exact: `contract`
  with rows        `dual`: `limits`, `cuts`, `prices`, `join`
  with liveness    `anytime`: `intervals`, `lagrange`, `repair`, `neighbourhoods`
Integer program    `highs`: `model`, `lazy`, `engine`; why there is none: `infeasible`
Tables             `eliminate`, `shares`: optima over kept nodes, for the search for stages
Oracle             `enumerate`
Other programs     `layers` (clustering), `stages` and `sweep` (slicing)
"""
