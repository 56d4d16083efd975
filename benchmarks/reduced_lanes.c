/* Gradient descent on 1/2 ||W3 W2 W1 - target||_F^2, W_l of SIZE x SIZE, for many runs at a time.

   A block is LANES runs: an entry of a matrix is one vector of them, which the compiler keeps in a
   register of AVX-512. Arrays are [blocks][matrix][SIZE][SIZE][LANES]. Compile with -DREAL=double
   -DLANES=8 or -DREAL=float -DLANES=16. */

#define SIZE 6

typedef REAL vector __attribute__((vector_size(LANES * sizeof(REAL))));
typedef vector row[SIZE];
typedef row matrix[SIZE];

/* C = A B, with either factor transposed: three rows of C at a time stay in registers. */
#define TILE 3
#define EACH(x, count) _Pragma("GCC unroll 8") for (int x = 0; x < count; x++)
#define PRODUCT(NAME, LEFT, RIGHT)                                               \
    static inline void NAME(row *restrict A, row *restrict B, row *restrict C) { \
        for (int i = 0; i < SIZE; i += TILE) {                                   \
            vector sum[TILE][SIZE];                                              \
            EACH(t, TILE) EACH(j, SIZE) sum[t][j] = LEFT(i + t, 0) * RIGHT(0, j); \
            EACH(n, SIZE - 1) EACH(j, SIZE) EACH(t, TILE)                        \
                sum[t][j] += LEFT(i + t, n + 1) * RIGHT(n + 1, j);               \
            EACH(t, TILE) EACH(j, SIZE) C[i + t][j] = sum[t][j];                 \
        }                                                                        \
    }
#define OF_A(i, k) A[i][k]
#define OF_A_T(i, k) A[k][i]
#define OF_B(k, j) B[k][j]
#define OF_B_T(k, j) B[j][k]
PRODUCT(product, OF_A, OF_B)
PRODUCT(product_t, OF_A, OF_B_T)
PRODUCT(t_product, OF_A_T, OF_B)

static void descend(matrix W, matrix slope, REAL rate) {
    for (int i = 0; i < SIZE; i++)
        for (int j = 0; j < SIZE; j++)
            W[i][j] -= rate * slope[i][j];
}

void run(matrix *weights, matrix *targets, REAL rate, long blocks, long steps) {
    for (long block = 0; block < blocks; block++) {
        matrix *W = weights + 3 * block, *target = targets + block;
        for (long step = 0; step < steps; step++) {
            matrix two, error, back, of_1, of_2, of_3;
            product(W[1], W[0], two);
            product(W[2], two, error);
            for (int i = 0; i < SIZE; i++)
                for (int j = 0; j < SIZE; j++)
                    error[i][j] -= (*target)[i][j];
            product_t(error, two, of_3);
            t_product(W[2], error, back);
            product_t(back, W[0], of_2);
            t_product(W[1], back, of_1);
            descend(W[0], of_1, rate);
            descend(W[1], of_2, rate);
            descend(W[2], of_3, rate);
        }
    }
}
