"""What holds model and implementation together: suites, mutants, comparisons."""
