"""A set of facts as one change of a model's weights.

fact_set     `knowedit.FactSet`: facts are added, removed and replaced; the change is a function of those that are there
config       which layers change, how the facts' rows are made, and by which solver they become a change
buckets      keys and values of many facts, searched in batches of fixed shape
rows, store  what is kept of each fact, in memory or in a folder that only grows
collisions   facts that one change cannot hold together
metric       which directions of a layer's keys are free
solve        rows of one layer, or of several, as changes of weights
memit, emmet, alphaedit   the solvers, a file each
method       the solvers in the table of methods
"""
