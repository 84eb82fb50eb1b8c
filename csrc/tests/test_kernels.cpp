// Every instruction set this CPU runs, bit for bit against the contract of kernels.h as written out in these tests,
// or against the scalar kernels. Prints "N passed, 0 failed"; exits with 1 on a failure.
#include "tests/check.h"

int main() {
  const penjing::Tables tables;
  for (const penjing::Kernels* k : tables) std::printf("%s\n", k->name);
  penjing::test_linear(tables);
  penjing::test_vectors(tables);
  penjing::test_attend(tables);
  std::printf("%d passed, %d failed\n", penjing::counts().passed, penjing::counts().failed);
  return penjing::counts().failed ? 1 : 0;
}
