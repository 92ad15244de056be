"""What ``t2v-turbo doctor`` looks at, one thing a file."""
