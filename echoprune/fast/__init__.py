"""The same arithmetic as the library's classes, laid out for a GPU: fewer and larger kernels, nothing compiled per shape.

The library's modules are loaded by the library's code; what is here takes their weights and runs them by other steps.
"""
