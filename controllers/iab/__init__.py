"""Controllers that choose the path of every backhaul flow of an IAB network (NANCY D4.2 §4.2).

Each is a function of a :class:`~controllers.iab.problem.PathProblem` and a random stream that returns a
:class:`~controllers.iab.problem.Decision`; ``registry`` knows them by name.
"""
