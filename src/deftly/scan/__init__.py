"""From scans to objects: point clouds and meshes become closed, convex-decomposed bodies that simulation can trust.

`readers` reads files, `units` and `segment` find the things in them, `surface` closes each, `solid` makes a rigid body
of it, `model` its MJCF, `accept` tests it, `report` shows it; `ingest` is the whole. Needs the extra `scan`.
"""
