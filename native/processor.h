// What the processor has, and the system lets programs use.
#ifndef PHI3_PROCESSOR_H
#define PHI3_PROCESSOR_H

int processor_has_avx2(void);
int processor_has_avx512_vnni(void);

#endif
